"""Rules of sampling side by side: how good their texts are, for how many forward passes."""

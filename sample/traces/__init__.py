"""In which pass each token was written: collected, and shown as a page, a picture or a film."""

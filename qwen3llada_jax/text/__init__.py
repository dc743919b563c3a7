"""Between text and ids: tokenizers, conversations, chat templates, where a text ends."""

"""The server: what may be asked (bodies), who writes it (writer, engines), and what is answered (replies, app)."""

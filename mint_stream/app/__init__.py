"""Composition roots: settings in, a running role out. The only place where objects meet."""

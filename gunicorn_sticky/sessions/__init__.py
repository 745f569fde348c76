"""Session ids: who makes them, and how frameworks are made to use them, one file a framework."""

"""Public data sets in the layout they ship in, and procedural scenes."""

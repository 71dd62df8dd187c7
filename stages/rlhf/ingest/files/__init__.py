"""Files on disk, in folders, zips and gzips, and the rows in them."""

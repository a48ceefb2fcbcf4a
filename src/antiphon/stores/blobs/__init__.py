"""Storage for the contents of files. Their metadata is in the other stores."""

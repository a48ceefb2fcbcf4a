"""Where the contents of files lie; what is known of files is with the other stores."""

"""Published collections in their own layouts, one file each."""

"""Files -> views: data sets, the four views of an image, and the loader that batches them."""

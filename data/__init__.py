"""Commands that prepare data; datasets are downloaded to folders next to this file."""

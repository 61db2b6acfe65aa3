"""A folder of the user's own images and captions."""


class ImageFolderSource:
    """Not there yet."""

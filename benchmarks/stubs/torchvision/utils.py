"""Nothing that a measured step calls: only a preview would write pictures, and none is reached."""


def save_image(*args: object, **options: object) -> None:
    raise NotImplementedError("the stub torchvision writes no pictures")


make_grid = save_image

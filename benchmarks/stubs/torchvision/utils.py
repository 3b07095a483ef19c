"""Nothing that a measured step calls: only a preview would write images, and none is reached."""


def save_image(*args: object, **options: object) -> None:
    raise NotImplementedError("the stub torchvision writes no images")


make_grid = save_image

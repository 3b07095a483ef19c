"""What a model is for: the settings of each task, and from a batch to what its network is told."""

from kuosan.tasks.generation import Generation as Generation
from kuosan.tasks.inpainting import Inpainting as Inpainting
from kuosan.tasks.super_resolution import SuperResolution as SuperResolution

Task = Generation | SuperResolution | Inpainting

"""What a model is for: the settings of each task, and from a batch to its network's conditioning."""

from kuosan.tasks.task import Generation as Generation
from kuosan.tasks.task import Inpainting as Inpainting
from kuosan.tasks.task import SuperResolution as SuperResolution

Task = Generation | SuperResolution | Inpainting

"""Plain tensors out of pickled files, without unpickling."""

from kuosan.pickled.state_dict import read as read

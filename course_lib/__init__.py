"""The tested implementations behind the notebooks of Road to Sora.

Conventions, stated once and kept everywhere:

* Video is ``(b, c, f, h, w)``, images are ``(b, c, h, w)``, values lie in [-1, 1]. Frames are ``f``; the letter ``t``
  means diffusion time and nothing else. Frames fold into the batch as ``(b f)``. y points down.
* Diffusion time: ``t = 0`` is data, ``t = 1`` (or ``T - 1``) is noise. ``x0`` is data, ``eps`` noise, ``xt`` the
  mixture, and for flow matching the velocity is ``v = eps - x0``. Guidance is ``uncond + w * (cond - uncond)``;
  ``w = 1`` is off.
* Attention masks are boolean and True where a query *may* look.
* Bad input raises ``ValueError`` and names the value; ``assert`` guards internal invariants only.

Importing this package imports nothing heavy: ask for the submodule you need.
"""

__version__ = "0.1.0"

from course_lib import torchvision_shim

torchvision_shim.install()

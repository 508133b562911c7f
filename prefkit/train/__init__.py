"""The trainer: preference pairs in, aligned model out.

Nothing is imported here, so that ``import prefkit.train`` costs nothing; each file imports torch for itself. The
package can be called, ``prefkit.train(pipeline, data=…, out=…)``, and is then `prefkit.train.run.train`: a package and
a function of one name cannot otherwise live side by side, since importing the one puts it in place of the other.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        from prefkit.train.run import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

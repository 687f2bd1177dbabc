"""What a planted bug is."""

from __future__ import annotations

from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """A bug.

    Attributes:
        name: what it is.
        file: in which file of the package.
        jax: the old text and the new; None if it is none of JAX's.
        torch: the same for PyTorch.
        rows: the beginning of the names of the rows of the matrix that must show it.
        torch_file: where PyTorch has it in another file.
        situations: the kinds of situations that must show it, where the matrix cannot.
    """

    name: str
    file: str
    jax: tuple[str, str] | None
    torch: tuple[str, str] | None
    rows: str = ""
    torch_file: str | None = None
    situations: tuple[str, ...] = ()

    def file_in(self, framework: str) -> str:
        """Its file in one of the packages."""
        return self.torch_file or self.file if framework == "torch" else self.file


def same(name: str, file: str, old: str, new: str, rows: str = "", **kinds: Any) -> Mutant:
    """A bug that reads the same in both packages."""
    return Mutant(name, file, (old, new), (old, new), rows, **kinds)

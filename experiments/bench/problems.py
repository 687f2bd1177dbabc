"""What may go wrong in one cell of the table, so that the others go on."""

from typing import Any


def first_line(error: BaseException, limit: int = 160) -> str:
    """What an error says first, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:limit].removesuffix(": ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is that, of Python, JAX or PyTorch."""
    text = str(error).lower()
    words = "resource_exhausted", "out of memory", "can't allocate memory", "not enough memory"
    return isinstance(error, MemoryError) or any(word in text for word in words)


def compile_errors() -> tuple[type[Exception], ...]:
    """What `torch.compile` raises where it cannot compile."""
    from torch._dynamo import exc as dynamo
    from torch._inductor import exc as inductor

    found: list[Any] = [dynamo.TorchDynamoException, getattr(inductor, "InductorError", None)]
    found += [getattr(inductor, name, None) for name in ("InvalidCxxCompiler", "CppCompileError")]
    return tuple(each for each in found if each is not None)


def why_left_out(error: Exception, setting: str) -> str | None:
    """What a cell says in place of a number; None for an error that no cell should hide."""
    if is_out_of_memory(error):
        return "out of memory"
    if setting == "torch-compiled" and isinstance(error, compile_errors()):
        return f"not compiled: {first_line(error)}"
    if setting == "torch-cudagraphs" and isinstance(error, RuntimeError):
        return f"not captured: {first_line(error)}"
    return None

def targets() -> list[tuple[str, bool]]: ...
def update(
    target: int,
    segments: int,
    num_segments: int,
    frame: int,
    addresses: int,
    scalars: int,
    absmax: int,
    num_threads: int,
) -> None: ...
def measure(
    target: int,
    segments: int,
    num_segments: int,
    frame: int,
    addresses: int,
    scalars: int,
    absmax: int,
    num_threads: int,
) -> None: ...
def sum_of_squares(target: int, values: int, dtype: int, numel: int, num_threads: int) -> float: ...

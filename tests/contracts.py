"""What every allocator promises.

"Spent": at least 99 % of the limit is, or what is left does not pay for one more step (one `channel_multiple`) of any
group that is not whole yet.
"""


def steps(problem, keep):
    """Kept counts after one more step of each group that has one left."""
    for number, (n, size) in enumerate(zip(keep, problem.sizes, strict=True)):
        if n < size:
            more = keep.copy()
            more[number] = next(rung for rung in problem.rungs[number] if rung > n)
            yield more


def spent(problem, keep):
    """Whether 99 % of the limit is spent, or no single group can take one more step."""
    return problem.cost(keep) >= 0.99 * problem.limit or not any(map(problem.feasible, steps(problem, keep)))


def assert_legal(problem, keep):
    assert keep.dtype.kind == "i"
    assert keep.shape == problem.sizes.shape
    assert (keep >= problem.floors).all()
    assert (keep <= problem.sizes).all()
    assert all(n in rungs for n, rungs in zip(keep, problem.rungs, strict=True))


def assert_contract(problem, keep):
    assert_legal(problem, keep)
    assert problem.cost(keep) <= problem.limit
    assert spent(problem, keep)

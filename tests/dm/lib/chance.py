"""Random steps that a seed repeats."""


def take_steps(rng, weights, count):
    """Takes `count` random steps of {step: weight}. A failure prints the steps up to it."""
    taken = rng.choices(list(weights), list(weights.values()), k=count)
    for n, step in enumerate(taken):
        try:
            step()
        except BaseException:
            print("steps:", *(step.__name__ for step in taken[: n + 1]))
            raise

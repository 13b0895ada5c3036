"""Work that a seed chooses."""


def take_steps(rng, weights, count):
    """Takes so many random steps, {step: weight}. If one fails, the steps up to it are shown."""
    taken = rng.choices(list(weights), list(weights.values()), k=count)
    for n, step in enumerate(taken):
        try:
            step()
        except BaseException:
            print("steps:", *(step.__name__ for step in taken[: n + 1]))
            raise

"""Results: the values of every turn of every round, printed as tables and kept as JSON."""

import json
import statistics

LEVEL = 0.97  # a gain below it is behind C, unless C is as far from itself
TURNS = ("bound", "program", "thin", "linear", "C", "Rust")


class Table:
    """Rows of measurements of one kind. The two turns of C in a round, "C" and "C again", are one
    column; C/C is how far apart they were in the worst round. A gain above 1 is better than C,
    whether the unit is a speed or, with `less`, a time.
    """

    def __init__(self, title, unit, less=False):
        self.title, self.unit, self.less, self.rows = title, unit, less, {}

    def add(self, row, turn, *values):
        self.rows.setdefault(row, {}).setdefault(turn, []).extend(values)

    def median(self, row, turn):
        values = self.rows[row].get(turn, [])
        if turn == "C":
            values = values + self.rows[row].get("C again", [])
        return statistics.median(values) if values else None

    def apart(self, row):
        """The worst ratio of C to C, at most 1."""
        pairs = zip(self.rows[row].get("C", ()), self.rows[row].get("C again", ()))
        return min((min(pair) / max(pair) if max(pair) else 1 for pair in pairs), default=None)

    def gain(self, row):
        c, rust = self.median(row, "C"), self.median(row, "Rust")
        if None in (c, rust):
            return None
        return quotient(c, rust) if self.less else quotient(rust, c)

    def show(self):
        """Prints it, without rows of zeros."""
        turns = [turn for turn in TURNS if any(turn in values for values in self.rows.values())]
        beside = [turn for turn in ("C", "Rust") if "linear" in turns]
        print(f"\n{self.title}; {self.unit}")
        line("what", *turns, *(f"{turn}/linear" for turn in beside), "gain", "C/C", "")
        line(*["---"] * (len(turns) + len(beside) + 4))
        for row in self.rows:
            if not any(any(values) for values in self.rows[row].values()):
                continue
            medians = {turn: self.median(row, turn) for turn in turns}
            ratios = [quotient(medians[turn], medians["linear"]) for turn in beside]
            gain, apart = self.gain(row), self.apart(row)
            behind = gain is not None and gain < min(LEVEL, 1 if apart is None else apart)
            line(
                row,
                *map(number, medians.values()),
                *map(fraction, ratios),
                fraction(gain),
                fraction(apart),
                "behind" if behind else "",
            )


class Report:
    """All tables of a run, and what they were measured with."""

    def __init__(self, file, facts):
        self.file, self.facts, self.tables = file, facts, []

    def show(self, part, *tables):
        """Prints tables and writes everything so far, so that a run that is cut short leaves its
        figures.
        """
        for table in tables:
            table.show()
            self.tables.append(
                {
                    "part": part,
                    "title": table.title,
                    "unit": table.unit,
                    "less_is_better": table.less,
                    "rows": table.rows,
                }
            )
        if self.file:
            with open(self.file, "w") as file:
                json.dump({**self.facts, "tables": self.tables}, file, indent=1)


def quotient(a, b):
    return a / b if None not in (a, b) and b else None


def fraction(value):
    return "-" if value is None else f"{value:.2f}"


def number(value):
    """Three or more digits."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:.{digits}f}"


def line(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)

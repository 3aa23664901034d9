"""stock_sets.py: what a question about a stock shows, and that it shows nothing of its future."""

import datetime

import pytest
from preparing import lines, run

import stock_sets
from config import UserError

DAYS = [datetime.date(2015, 8, 3) + datetime.timedelta(days=d) for d in range(60)]
ASKED = DAYS[50]


def traded(factor=1.03, dividend=None):
    """(date, open, high, low, close, adjusted close) of made-up days; from `dividend` on prices
    as traded are closer to the adjusted ones."""
    rows, close = [], 100.0
    for i, day in enumerate(DAYS):
        close *= 1 + ((i * 37) % 11 - 5) / 400
        real = close * (factor if dividend is None or i < dividend else 1.01)
        rows.append((day, real * 1.004, real * (1.006 + i % 3 / 500), real * (0.99 + i % 4 / 500),
                     real, close))  # fmt: skip
    return rows


def write(folder, days, asked=ASKED, label="Rise", after=0.0):
    """A source folder; prices as stocknet has them: against the adjusted close of the day before.
    `after` is added to every price from the day asked about on."""
    header = "ticker,date,movement_pct,open_norm,high_norm,low_norm,close_norm,volume"
    table, before = [header], days[0][5]
    for day, opening, high, low, _, close in days:
        shift = after if day >= asked else 0.0
        values = [x / before - 1 + shift for x in (close, opening, high, low)]
        table.append(f"AAPL,{day},{','.join(f'{v:.6f}' for v in values)},{close - before:.6f},9")
        before = close
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prices.csv").write_text("\n".join(table) + "\n")
    tweets = [{"ticker": "AAPL", "date": str(day), "tweets": [f"tweet of {day}"] * 3}
              for day in DAYS[40:]]  # fmt: skip
    lines(folder / "tweets.jsonl",
          [*tweets, {"ticker": "IBM", "date": str(DAYS[49]), "tweets": ["other"]}])  # fmt: skip
    lines(folder / "test_samples.jsonl", [{"ticker": "AAPL", "date": str(asked), "label": label}])
    return folder


def shown(folder, out):
    [row], _, _ = run("sm_acl", folder, out)
    return row["text"].splitlines(), row


def test_the_columns_are_percents_against_the_close_and_means_of_days(tmp_path):
    days = traded()
    text, row = shown(write(tmp_path / "s", days), tmp_path / "out")
    assert text[0] == f"closing price of $aapl at {ASKED}" and text[1] == stock_sets.HEADER
    assert row["answer"] == "Rise" and row["choices"] == ["Rise", "Fall"]
    adjusted = [day[5] for day in days]
    for line, i in zip(text[2:12], range(40, 50), strict=True):
        day, opening, high, low, close, _ = days[i]
        expected = [100 * (x / close - 1) for x in (opening, high, low)]
        expected += [100 * (adjusted[i] / adjusted[i - 1] - 1)] * 2
        for k in stock_sets.MEANS:
            mean = sum(adjusted[i - k + 1 : i + 1]) / k
            expected.append(100 * (mean / adjusted[i] - 1))
        date, *values = line.split(",")
        assert date == str(day)
        # open, high and low to what is known of the factor between the two scales of prices
        assert [float(v) for v in values[:3]] == pytest.approx(expected[:3], abs=0.3)
        assert [float(v) for v in values[3:]] == pytest.approx(expected[3:], abs=0.06)


def test_a_low_is_never_above_its_close_also_after_a_dividend(tmp_path):
    text, _ = shown(write(tmp_path / "s", traded(dividend=45)), tmp_path / "out")
    for line in text[2:12]:
        _, opening, high, low, *_ = line.split(",")
        assert float(low) <= 0 <= float(high) and float(low) <= float(opening) <= float(high)


def test_nothing_of_the_day_asked_about_or_later_is_shown(tmp_path):
    text, _ = shown(write(tmp_path / "a", traded()), tmp_path / "x")
    again, _ = shown(write(tmp_path / "b", traded(), after=0.05), tmp_path / "y")
    assert text == again  # other prices from that day on change nothing
    assert [line[:10] for line in text[2:12]] == [str(day) for day in DAYS[40:50]]
    said = [line[:10] for line in text[12:]]
    assert said == [str(DAYS[i]) for i in (49, 49, 49, 48, 48, 48, 47, 47, 47, 46)]
    assert "other" not in "".join(text)


def test_a_day_without_enough_prices_before_it_is_left_out(tmp_path):
    folder = write(tmp_path / "s", traded(), asked=DAYS[38])
    with pytest.raises(UserError, match=r"samples.jsonl:1: date: 9 days of prices before it, not"):
        run("sm_acl", folder, tmp_path / "out")
    folder = write(tmp_path / "s", traded(), label="Up")
    with pytest.raises(UserError, match=r"samples.jsonl:1: answer: 'Up' is not one of Rise, Fall"):
        run("sm_acl", folder, tmp_path / "out")

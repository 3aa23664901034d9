"""Prices and tweets of stocks -> the questions of SM-ACL, in the published rows' columns.

    prices.csv          ticker,date,movement_pct,open_norm,high_norm,low_norm,close_norm,volume
    tweets.jsonl        {"ticker", "date", "tweets": [..]}
    test_samples.jsonl  {"ticker", "date", "label": "Rise" | "Fall"}

A question shows ten trading days and the latest tweets before its day, nothing of that day or
later. Columns, in percent (Feng et al., arXiv 1810.09936): open, high and low against the day's
close; close against the day before's; inc-k, the mean close of k days, against the day's close.
"""

from collections import defaultdict
from datetime import date

from choice_sets import label_row
from config import UserError
from jsonl import check_fields
from sources import Found, find, read_records, rows_of

DAYS = 10  # trading days that a question shows
MEANS = (5, 10, 15, 20, 25, 30)  # days that inc-k averages
TWEETS, TWEET_DAYS = 10, 5  # at most so many tweets, of so many calendar days before
HEADER = "date,open,high,low,close,adj-close," + ",".join(f"inc-{k}" for k in MEANS)


def prepare_sm_acl(source):
    """stocknet-dataset's prices and tweets; days whose price hardly moved have no question."""
    prices, tweets, found = read_prices(find(source, "prices.csv")), defaultdict(list), Found([])
    for where, record in read_records(find(source, "tweets.jsonl")):
        check_fields(record, {"ticker": str, "date": str, "tweets?": list}, where)
        tweets[record["ticker"]].append((record["date"], record.get("tweets") or []))
    tables = {ticker: price_lines(days) for ticker, days in prices.items()}

    def row(where, sample):
        check_fields(sample, {"ticker": str, "date": str, "label": str}, where)
        ticker, day = sample["ticker"], sample["date"]
        shown = [line for line in tables.get(ticker, ()) if line[:10] < day][-DAYS:]
        if len(shown) < DAYS:
            raise UserError(f"{where}: date: {len(shown)} days of prices before it, not {DAYS}")
        said = latest_tweets(tweets[ticker], day)
        text = "\n".join([f"closing price of ${ticker.lower()} at {day}", HEADER, *shown, *said])
        return label_row("sm_acl", where, text, sample["label"])

    samples = read_records(find(source, "test_samples.jsonl"))
    found.test = rows_of(samples, row, found.left_out)
    return found


def read_prices(path):
    """{ticker: [(date, movement, open, low, high)]} in the order of dates, as fractions."""
    prices, columns = defaultdict(list), ("movement_pct", "open_norm", "low_norm", "high_norm")
    for where, record in read_records(path):
        check_fields(record, {"ticker": str, "date": str} | dict.fromkeys(columns, str), where)
        try:
            values = [float(record[name]) for name in columns]
        except ValueError as e:
            raise UserError(f"{where}: {e}; get the file as published") from None
        prices[record["ticker"]].append((record["date"], *values))
    return {ticker: sorted(days) for ticker, days in prices.items()}


def price_lines(days):
    """The csv line of each day that has 30 days of prices up to it.

    stocknet's open, high and low are prices as traded, against an earlier close that is adjusted
    for dividends, so that a low can lie above its close. The factor between the two scales stays
    the same between dividends. Every close lies between low and high, which bounds it: the bounds
    of a day and of those before it, as far as they agree, leave it known to a part in a thousand.
    """
    lines, closes, bounds = [], [], []
    for i, (day, movement, opening, low, high) in enumerate(days):
        closes.append(closes[-1] * (1 + movement) if closes else 1.0)
        bounds.append(((1 + low) / (1 + movement), (1 + high) / (1 + movement)))
        least, most = bounds[-1]
        for lower, upper in reversed(bounds[:-1]):
            if max(least, lower) > min(most, upper):
                break  # a dividend
            least, most = max(least, lower), min(most, upper)
        close = (1 + movement) * (least + most) / 2
        if i + 1 < max(MEANS):
            continue
        values = [(1 + price) / close - 1 for price in (opening, high, low)] + [movement] * 2
        values += [sum(closes[-k:]) / k / closes[-1] - 1 for k in MEANS]
        lines.append(f"{day}," + ",".join(f"{100 * value:.1f}" for value in values))
    return lines


def latest_tweets(said, day):
    """["2015-09-30: tweet"] of the last days before `day`, the latest first."""
    asked, found = date.fromisoformat(day), []
    for when, texts in sorted(said, reverse=True):
        if 0 < (asked - date.fromisoformat(when)).days <= TWEET_DAYS:
            found += [f"{when}: {text}" for text in texts]
    return found[:TWEETS]

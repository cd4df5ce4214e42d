"""Python's `re` with fail2ban's tags, for a batch of patterns and texts.

Reads one JSON object: `patterns` (text, names, lines, prefix), `lines`, and `step`. Answers with one JSON object: the
`texts` that were searched, how many of them are `single` ones, and for every pair that matched its pattern, its text, its span and its groups. Texts are
the lines as fail2ban's patterns see them: without their date, what a prefix leaves of them, and, for patterns over
`lines`, several joined; each with a line break at its end. Each pattern is tried on every `step`-th text.
"""

import json
import re
import sys

from fail2ban.server.datedetector import DateDetector
from fail2ban.server.failregex import Regex

JOINED = 5


def main():
    job = json.load(sys.stdin)
    detector = DateDetector()
    texts = {}
    for line in job["lines"]:
        texts.setdefault(line + "\n", None)
        found = detector.matchTime(line)[0]
        if found:
            texts.setdefault(line[: found.start(1)] + line[found.end(1) :] + "\n", None)
    cut = list(texts)
    regexes = []
    for pattern in job["patterns"]:
        regex = Regex(pattern["text"], multiline=pattern["lines"], useDns="yes" if pattern["names"] else "no")
        regexes.append(re.compile(regex.getRegex(), re.MULTILINE if pattern["lines"] else 0))
    for at, (pattern, regex) in enumerate(zip(job["patterns"], regexes)):
        if pattern["prefix"] and "content" in regex.groupindex:
            for text in cut[at % job["step"] :: job["step"]]:
                found = regex.search(text)
                if found and found.group("content"):
                    texts.setdefault(found.group("content") + "\n", None)
    texts = list(texts)
    single = len(texts)
    texts += ["".join(cut[start : start + JOINED]) for start in range(0, len(cut), JOINED)]
    matches = []
    pairs = 0
    for at, regex in enumerate(regexes):
        last = len(texts) if job["patterns"][at]["lines"] else single
        for number in range(at % job["step"], last, job["step"]):
            pairs += 1
            found = regex.search(texts[number])
            if found:
                groups = {name: list(found.span(name)) for name in regex.groupindex if found.group(name) is not None}
                matches.append([at, number, list(found.span()), groups])
    json.dump({"texts": texts, "single": single, "pairs": pairs, "matches": matches}, sys.stdout)


main()

"""The CPU seconds in which the filter of a fail2ban server takes lines: date, patterns, failure manager.

Arguments: a filter's name or an expression, and a file. Prints seconds and failures. It drives the installed package,
in one process and without a socket, a database or an action, so that its start and its waits do not count.
"""

import logging
import sys
import time

from fail2ban.client.filterreader import FilterReader
from fail2ban.server.filterpoll import FilterPoll
from fail2ban.server.jail import Jail

what, path = sys.argv[1:3]
logging.disable(logging.CRITICAL)
core = FilterPoll(Jail("bench", backend="polling"))
core.setUseDns("no")
# Never reached, and no line too old, so that every failure is counted.
core.setMaxRetry(60_000)
core.setFindTime(10**9)
if "<HOST>" in what:
    core.addFailRegex(what)
else:
    reader = FilterReader(what, "bench", {}, basedir="/etc/fail2ban")
    reader.read()
    reader.getOptions({})
    setters = {
        "addfailregex": core.addFailRegex,
        "addignoreregex": core.addIgnoreRegex,
        "datepattern": core.setDatePattern,
        "maxlines": core.setMaxLines,
        "prefregex": lambda text: setattr(core, "prefRegex", text),
    }
    for verb, _, key, value, *_ in reader.convert():
        for text in value if verb == "multi-set" else [value]:
            if key in setters:
                setters[key](text)
with open(path, errors="replace") as log:
    lines = log.read().splitlines()
begun = time.process_time()
for line in lines:
    core.processLineAndAdd(line)
print(time.process_time() - begun, core.failManager.getFailTotal())

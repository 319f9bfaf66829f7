"""The lowest versions that setup.cfg admits, as pip reads them after -c: `python .ci/lowest.py all test`."""

import configparser
import sys

config = configparser.ConfigParser()
config.read("setup.cfg")
wanted = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in sys.argv[1:])]
lines = [line for text in wanted for line in text.split("\n") if line]
print("\n".join(dict.fromkeys(line.replace(">=", "==") for line in lines)))

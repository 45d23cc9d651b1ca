"""Every topic says all there is to say about it."""

import re
from dataclasses import replace

import pytest
import yaml
from test_schemas_paths import GOOD, SCHEMAS

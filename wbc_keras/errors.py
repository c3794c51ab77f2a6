"""The exceptions of wbc_keras.

WbcError                 a mistake the user can mend; its message is one line
├── ConfigError          a setting
├── DataError            pictures, labels, a manifest
│   ├── images.BadImage  one picture that cannot be used
│   └── datasets.ByHand  a public set that a person must fetch
└── RunError             a run folder or a model
    └── hosts.SharedError  what one of several processes has told all
"""

from __future__ import annotations


class WbcError(Exception):
    """A mistake the user can mend: says what, where and how, in one line."""


class ConfigError(WbcError):
    """A setting is unknown, of the wrong type, out of range or at odds with another."""


class DataError(WbcError):
    """Pictures, labels or a manifest cannot be used as given."""


class RunError(WbcError):
    """A run folder or a model cannot be used as asked."""

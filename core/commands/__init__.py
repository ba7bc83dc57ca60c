"""What each command of ``polydit`` does, and the parser they share. Importing any of it imports no torch."""

from __future__ import annotations

from .parser import Menu, Parser, add_options

__all__ = ["Menu", "Parser", "add_options"]

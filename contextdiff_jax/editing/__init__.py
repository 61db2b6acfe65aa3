"""Editing a clip by a text: inversion, prompt alignment, attention control with constant memory, masks, blending.

A method is data: which of these parts act, how long and where (`settings.Settings`), never a class of its own.
"""

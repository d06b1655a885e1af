"The renderer without Quarto: what a reader sees, in a browser without a network."
import base64, io, json, os, re, shutil, subprocess
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell as code, new_markdown_cell as md, new_notebook, new_output, new_raw_cell as raw

from ssv2_report.report import ReportError, render, stage

ROOT = Path(__file__).parent.parent
CHROMIUM = '/usr/bin/chromium'
VARIABLES = dict(clips=480, accuracy=dict(gain='12.5 points', interval='9.1 to 15.8'))

CONFIG = '''
project: {type: website}
lang: en
bibliography: references.bib
link-citations: true
number-sections: true
website:
  title: "2D & 3D networks"
  page-navigation: true
  navbar: {left: [{text: Report, href: index.ipynb}]}
  sidebar:
    contents:
      - section: Report
        contents: [{text: The report, href: index.ipynb}]
      - section: Notebooks
        contents: [{text: 01 Models, href: 01_models.ipynb}, {text: Absent, href: 09_absent.ipynb}]
format:
  html: {toc: true, code-fold: true, html-math-method: mathml}
  typst: {papersize: a4, echo: false}
'''

PLAYER = '''<div class="player" id="%s"><input type="range" min="0" max="7" value="0" aria-label="Frame"><output>0</output>
<script>(() => { const p = document.getElementById("%s"), s = p.querySelector("input");
  s.oninput = () => p.querySelector("output").textContent = s.value; if (1 < 2 && "a" !== '`') p.dataset.ready = "yes"; })();</script></div>'''


def show(**data):
    return new_output('display_data', data={k.replace('_', '/', 1): v for k, v in data.items()})


def picture(width=5, height=2.4):
    fig, ax = plt.subplots(figsize=(width, height), layout='constrained')
    ax.plot([1, 2, 3, 4], [.3, .7, .9, .95], label='3D')
    ax.plot([1, 2, 3, 4], [.3, .4, .5, .5], '--', label='2D')
    ax.set(xlabel='epoch', ylabel='accuracy'); ax.legend()
    buffer = io.BytesIO()
    fig.savefig(buffer, format='png', dpi=110)
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def write(path, cells):
    nb = new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}})
    nbformat.write(nb, path)
    return path


def report_cells():
    wide = pd.DataFrame({f'a rather long column {i}': [.5 + i / 20, .25] for i in range(9)}, index=['2D over frames', '3D inflated'])
    return [
        raw('---\ntitle: What do networks attend to?\nsubtitle: A study of order\nauthor:\n  - name: A. Author\n    affiliation: Some University\n'
            '  - name: B. Writer\nabstract: |\n  On {{< var clips >}} clips 3D gains *{{< var accuracy.gain >}}* [@goyal2017something].\n---'),
        md('## Introduction {#sec-intro}\n\nGrad-CAM [@selvaraju2017gradcam] on {{< var clips >}} clips; @carreira2017quo inflate. '
           'See @fig-curves, @tbl-wide, @tbl-small, @fig-maps, @sec-method, @eq-gap and [the models](01_models.ipynb#fig-inner).\n\n'
           'A gain of {{< var accuracy.gain >}} ({{< var accuracy.interval >}}).[^1] Written `{{{< var x >}}}`.\n\n[^1]: A note.'),
        md('::: {.callout-note}\n## Mind\nA demo world is *not* SSv2.\n:::\n\n::: {.callout-warning collapse="true"}\nFolded away.\n:::'),
        md('## Method {#sec-method}\n\n$$\\Delta = \\frac{1}{n}\\sum_i (y_i - x_i)$$ {#eq-gap}\n\nInline $x^2$.\n\n### Data\n\nText.'),
        code('#| label: fig-curves\n#| fig-cap: "Accuracy over {{< var clips >}} clips, after @carreira2017quo."\n#| fig-alt: "Two curves: the 3D one rises to 0.95, the 2D one stays at \\"half\\"."\n'
             'plot(history)', outputs=[show(image_png=picture(), text_plain='<Figure>')]),
        code('#| label: tbl-wide\n#| tbl-cap: "Accuracy by class."\nwide', outputs=[show(text_html=wide.to_html(border=1), text_plain='x')]),
        md('| model | top-1 |\n|:--|--:|\n| 2D | 0.5 |\n| 3D | 0.9 |\n\n: A small table. {#tbl-small}'),
        code('#| label: fig-maps\n#| fig-cap: "The same clip."\n#| fig-alt: "Frames with maps."\n#| echo: false\nplayer()',
             outputs=[show(text_html=PLAYER % ('p1', 'p1'), image_png=picture(3, 1.5))]),
        code('#| code-summary: "How"\nprint("x")\nplayer2()', outputs=[new_output('stream', name='stdout', text='step 1\r'),
             new_output('stream', name='stdout', text='step 2\x1b[31m red\x1b[0m\n'), show(text_html=PLAYER % ('p2', 'p2'))]),
        md('::: {.panel-tabset}\n### Ordered\n\nFirst *tab*.\n\n### Shuffled\n\nSecond tab.\n:::'),
        md('Embedded:\n\n{{< embed 01_models.ipynb#fig-inner >}}\n\nAnd on.'),
        code('#| include: false\nsecret()', outputs=[show(text_plain='secret')]),
        md('## Conclusion\n\n' + 'Order tells. ' * 60),
    ]


MODEL = '''#| export
import dataclasses

@dataclasses.dataclass
class Shape:
    "A clip's shape."
    frames:int # How many

def double(
    clip:list, # A clip [C,T,H,W]
    times:int=2, # How often
)->list: # The clip
    "Repeat a clip in time."
    return clip * times'''


def model_cells():
    return [code('#| default_exp models'), md('# Models\n\n> Two kinds\n> of them\n\nWhy one should care.'),
            code('#| export\nfrom pathlib import Path\n_private = 1'), md('## Define'), code(MODEL),
            code('#| label: fig-inner\n#| fig-cap: "Inner figure."\n#| fig-alt: "A curve."\ndouble([1])', outputs=[show(image_png=picture(4, 2))]),
            code('double([1])', outputs=[show(text_plain='[1, 1]')]), code('#| hide\nhidden()')]


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp('project')
    (root/'nbs').mkdir()
    (root/'_quarto.yml').write_text(CONFIG)
    shutil.copy(ROOT/'nbs'/'references.bib', root/'nbs')
    books = dict(index=write(root/'index.ipynb', report_cells()), **{'01_models': write(root/'01_models.ipynb', model_cells())})
    return root, books


@pytest.fixture(scope='module')
def site(project, tmp_path_factory):
    root, books = project
    return stage(tmp_path_factory.mktemp('site'), books, VARIABLES, root)


@pytest.fixture(scope='module')
def index(site, tmp_path_factory):
    return render(site, tmp_path_factory.mktemp('out'), quarto=None)

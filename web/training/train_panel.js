// The panel in Train Wan LoRA: chart, numbers, previews, and Stop & use. All it shows comes from the server.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { el } from '../shared/elements.js'
import { ready } from '../shared/messages.js'
import { addPanel, isAbout, nodeKey, whenPlaced } from '../shared/panel.js'
import { redrawing } from '../shared/redrawing.js'
import { get, pathOfRun, post } from '../shared/server.js'
import { fromAnswer as curveOf, lastStep, MOST_POINTS } from '../chart/loss_series.js'
import { fromAnswer, heardByAll, presentOf } from './run_state.js'
import { TrainView } from './train_view.js'

const NODE = 'WanTune_TrainWanLoRA'
const EXPERTS = ['high', 'low']
const HEIGHT = 440
const MILLISECONDS_BETWEEN_ASKING = 1000
const MILLISECONDS_OF_SILENCE = 10000
const MESSAGES = ['started', 'step', 'evaluated', 'saved', 'previewed', 'noted', 'finished', 'ended']
const ENDINGS = ['reconnected', 'execution_success', 'execution_interrupted', 'execution_error']

/** The panels that get the server's messages, one for each node. */
const panels = new Set()

// added at once, not only while there is a panel: ComfyUI warns of messages without a listener
for (const name of MESSAGES) {
  api.addEventListener(`wantune.${name}`, ({ detail: message }) => panels.forEach((panel) => panel.hear(name, message)))
}
for (const name of ENDINGS) api.addEventListener(name, () => panels.forEach((panel) => panel.ask()))

app.registerExtension({
  name: 'WanTune.train_panel',
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const element = el('div', { class: 'wt-train' })
    addPanel(node, 'wantune_training', element, HEIGHT)
    ready.then(() => whenPlaced(node, () => follow(node, element)))
  },
})

function follow(node, element) {
  const panel = new TrainPanel(node, element)
  panels.add(panel)
  const nameWidget = node.widgets?.find((widget) => widget.name === 'run_name')
  if (nameWidget) after(nameWidget, 'callback', () => panel.ask())
  after(node, 'onRemoved', () => {
    panels.delete(panel)
    panel.destroy()
  })
}

class TrainPanel {
  #node
  #states = [] // of the run, or of the two of a pair, as run_state.js describes them
  #details = {} // by run, the curve within the window that was zoomed to
  #zoomWindow = null
  #error = ''
  // one request at a time and at most one a second; #isStale: another one is needed afterwards
  #isStale = true
  #isAsking = false
  #timer = 0
  #asked = 0
  #heardAt = 0
  #isDestroyed = false
  #view
  #screen
  #silence = setInterval(() => {
    if (this.#states.some(({ state }) => state === 'running') && performance.now() - this.#heardAt > MILLISECONDS_OF_SILENCE) this.ask()
  }, MILLISECONDS_OF_SILENCE)

  constructor(node, element) {
    this.#node = node
    this.#view = new TrainView(element, { onstop: () => this.#stop(), onzoom: (first, last) => this.#zoom(first, last) })
    this.#screen = redrawing(element, () => this.#view.show(this.#states, this.#details, this.#error),
      () => { if (this.#isStale) this.ask() })
    this.#screen.ask()
  }

  ask() {
    this.#isStale = true
    if (this.#isAsking || this.#timer || this.#isDestroyed || !this.#screen.isVisible()) return
    const wait = Math.max(0, this.#asked + MILLISECONDS_BETWEEN_ASKING - performance.now())
    this.#timer = setTimeout(() => this.#load(), wait)
  }

  /** Takes the server's message wantune.<name>. */
  hear(name, message) {
    // a second browser has the graph under an id of its own, but shows the same run
    if (!isAbout(message, this.#node) && !this.#states.some(({ run }) => run === message.run)) return
    this.#heardAt = performance.now()
    const next = heardByAll(this.#states, name, message)
    this.#states = next.states
    this.#screen.ask()
    if (next.ask) this.ask()
  }

  destroy() {
    this.#isDestroyed = true
    clearTimeout(this.#timer)
    clearInterval(this.#silence)
    this.#screen.stop()
    this.#view.destroy()
  }

  async #load() {
    this.#timer = 0
    this.#isAsking = true
    this.#isStale = false
    this.#asked = performance.now()
    try {
      const runName = this.#node.widgets?.find((widget) => widget.name === 'run_name')?.value
      const { run, run_low: low } = await get('node', { ...nodeKey(this.#node), run_name: runName })
      const runs = [run, low].filter(Boolean)
      const answers = await Promise.all(runs.map((each) => get(pathOfRun(each), { points: MOST_POINTS })))
      if (runs.join() !== this.#states.map((each) => each.run).join()) this.#details = {}
      this.#states = answers.map((answer, index) => fromAnswer(answer, runs.length > 1 ? EXPERTS[index] : ''))
      this.#error = ''
    } catch (problem) {
      this.#error = problem.message
    }
    this.#isAsking = false
    this.#screen.now()
    if (this.#isStale) this.ask()
  }

  async #zoom(first, last) {
    this.#zoomWindow = last ? [first, last] : null
    if (!this.#zoomWindow) return
    // a little more on either side, so that the lines reach the edges of the chart
    const margin = Math.ceil((last - first) / 20)
    const range = { first: Math.max(1, first - margin), last: last + margin }
    await Promise.all(this.#states.filter(({ curve }) => lastStep(curve) > MOST_POINTS).map(async ({ run }) => {
      const answer = await get(pathOfRun(run), { points: MOST_POINTS, ...range }).catch(() => null)
      const isLate = this.#zoomWindow?.[0] !== first || this.#zoomWindow?.[1] !== last
      if (!answer || isLate || !this.#states.some((each) => each.run === run)) return
      this.#details = { ...this.#details, [run]: { first, last, curve: curveOf(answer) } }
      this.#screen.now()
    }))
  }

  async #stop() {
    const present = presentOf(this.#states)
    if (!present) return
    this.#setStopping(true)
    this.#screen.now()
    try {
      const { stopping } = await post('stop', { run: present.run })
      if (!stopping) this.ask()
    } catch (problem) {
      this.#error = problem.message
      this.#setStopping(false)
    }
    this.#screen.now()
  }

  /** Both of a pair end together. */
  #setStopping(isStopping) {
    this.#states = this.#states.map((each) => (each.state === 'running' ? { ...each, isStopping } : each))
  }
}

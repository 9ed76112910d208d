// The text with which a node says what it has done: in the page's language, and also after the page is loaded again.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { ready } from '../shared/messages.js'
import { nodeKey, whenPlaced } from '../shared/panel.js'
import { speaker } from '../shared/sentences.js'
import { get } from '../shared/server.js'

const NODES = new Set(['CacheLatents', 'PruneCache', 'JoinDatasets', 'SaveLoRA', 'ApplyLoRA', 'LoadRunLoRA',
  'CompareCheckpoints'].map((name) => `WanTune_${name}`))

const WIDGET = '$$node-text-preview' // in which ComfyUI's page shows progress texts
const ENDINGS = ['execution_success', 'execution_interrupted', 'execution_error']

/** Nodes in the page's graphs. */
const nodes = new Set()

const widgetOf = (node) => node.widgets?.find(({ name }) => name === WIDGET)

/** What the server remembers of a node, unless it shows something already. */
async function recall(node) {
  if (widgetOf(node)) return
  const { shown } = await get('node', nodeKey(node)).catch(() => ({}))
  // ComfyUI's page looks for the node in the graph that is visible, where another one may have its id
  if (typeof shown?.text !== 'string' || widgetOf(node) || node.graph !== (app.canvas.graph ?? app.graph)) return
  api.dispatchCustomEvent('progress_text', { nodeId: String(node.id), text: shown.text.replaceAll('\n', '  \n') })
}

function recallAll() {
  for (const node of nodes) if (node.graph === (app.canvas.graph ?? app.graph)) recall(node)
}

async function translate({ detail }) {
  const say = await speaker()
  const id = String(detail.nodeId).split(':').at(-1)
  for (const node of nodes) {
    const widget = String(node.id) === id && widgetOf(node)
    // two spaces before a line's end are its Markdown
    if (widget && widget.value === detail.text) {
      widget.value = say(detail.text.replaceAll('  \n', '\n')).replaceAll('\n', '  \n')
    }
  }
}

app.registerExtension({
  name: 'WanTune.node_texts',
  setup() {
    // after ComfyUI's own listener has put the text into the node
    api.addEventListener('progress_text', (event) => setTimeout(() => translate(event), 0))
    // newer front ends take a node's text away when a graph that it is in begins, also if it is not run again
    for (const name of ENDINGS) api.addEventListener(name, () => setTimeout(recallAll, 0))
    app.canvas?.canvas?.addEventListener('litegraph:set-graph', () => setTimeout(recallAll, 0))
  },
  nodeCreated(node) {
    if (!NODES.has(node.comfyClass)) return
    nodes.add(node)
    after(node, 'onRemoved', () => nodes.delete(node))
    ready.then(() => whenPlaced(node, () => recall(node)))
  },
})

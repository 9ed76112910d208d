// Hides the widgets of our nodes that few users need, in the classic canvas, whose menu of a node has Show Advanced; Nodes 2.0
// of newer front ends hides them by itself. Those that a workflow sets to something are shown in both.

import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { advancedOf, isNeeded } from './hidden.js'

app.registerExtension({
  name: 'WanTune.advanced',
  nodeCreated(node) {
    const advanced = node.comfyClass?.startsWith('WanTune_') ? advancedOf(node.widgets) : []
    if (!advanced.length) return
    // a new node has the values of its description; those of a workflow come afterwards
    const defaults = new Map(advanced.map((widget) => [widget.name, widget.value]))
    const height = node.computeSize()[1]
    for (const widget of advanced) {
      widget.advanced = true
      // newer front ends leave room on the canvas for what is advanced, but not for what is hidden
      const get = () => !window.LiteGraph.vueNodesMode && !node.showAdvanced
      Object.defineProperty(widget, 'hidden', { get, set() {}, configurable: true })
    }
    node.setSize([node.size[0], node.size[1] - height + node.computeSize()[1]])
    const show = () => {
      if (node.showAdvanced || !isNeeded(advanced, defaults, node.inputs)) return
      node.showAdvanced = true
      node.expandToFitContent()
      node.setDirtyCanvas(true, true)
    }
    after(node, 'onConfigure', show)
    // a graph in API form is not configured: the page sets its values and links one by one
    after(node, 'onConnectionsChange', show)
    for (const widget of advanced) after(widget, 'callback', show)
  },
})

// Nodes 2.0 of newer front ends hides the widgets that a description marks as advanced until a button is pressed. Those that
// a workflow sets to something are shown at once. The classic canvas shows all: hiding leaves gaps there.

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
    const show = () => {
      if (node.showAdvanced || !isNeeded(advanced, defaults, node)) return
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

// The preset widget of Train Wan LoRA and of Export Training Job fills in the other widgets; a widget changed by hand makes it "custom".

import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { changes, presetOf } from './preset_values.js'

const NODES = ['WanTune_TrainWanLoRA', 'WanTune_ExportTrainingJob']
let presets

app.registerExtension({
  name: 'WanTune.presets',
  beforeRegisterNodeDef(_nodeType, nodeData) {
    if (nodeData.name === NODES[0]) presets = nodeData.input?.optional?.preset?.[1]?.presets
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass) || !presets) return
    const preset = node.widgets?.find((widget) => widget.name === 'preset')
    if (!preset) return
    let isFilling = false
    const byName = (name) => node.widgets.find((widget) => widget.name === name)
    after(preset, 'callback', () => {
      isFilling = true
      for (const [name, value] of changes(presets, preset.value, node.widgets.map((widget) => widget.name))) {
        const widget = byName(name)
        widget.value = value
        widget.callback?.(value, app.canvas, node)
      }
      isFilling = false
      node.setDirtyCanvas?.(true, true)
    })
    const filled = new Set(Object.values(presets).flatMap(Object.keys))
    for (const widget of node.widgets.filter((each) => filled.has(each.name))) {
      after(widget, 'callback', () => {
        if (isFilling) return
        preset.value = presetOf(presets, Object.fromEntries(node.widgets.map((each) => [each.name, each.value])))
      })
    }
  },
})

// What the list of runs does in the graph.

import { app } from '../../../scripts/app.js'

/** Opens the graph a run was trained with. */
export async function openWorkflow({ workflow, prompt }, name) {
  // under a name of its own it becomes a tab of its own, so that nothing unsaved is lost
  if (workflow) await app.loadGraphData(workflow, true, true, name)
  else await app.loadApiJson(prompt, name)
}

/** Puts a node with a checkpoint of a run into the middle of what is seen of the graph; whether there is such a node. */
export function addLoadRunLora(run, step) {
  const node = window.LiteGraph.createNode('WanTune_LoadRunLoRA')
  if (!node) return false
  for (const [name, value] of [['run', run], ['checkpoint', String(step)]]) {
    const widget = node.widgets.find((each) => each.name === name)
    widget.value = value
    widget.callback?.(value)
  }
  const { canvas } = app
  const [left, top, width, height] = canvas.visible_area
  node.pos = [left + width / 2 - node.size[0] / 2, top + height / 2 - node.size[1] / 2]
  const graph = canvas.graph ?? app.graph
  graph.add(node)
  canvas.selectNode?.(node)
  return true
}

/** Asks in ComfyUI's own way; resolves to whether the user is sure. */
export async function confirmDeletion(title, message, name) {
  const { dialog } = app.extensionManager
  if (!dialog?.confirm) return window.confirm(message)
  return dialog.confirm({ title, message, type: 'delete', itemList: [name] })
}

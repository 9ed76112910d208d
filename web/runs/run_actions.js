// What the list of runs does with ComfyUI's graph and dialogs.

import { app } from '../../../scripts/app.js'

const TRAIN = 'WanTune_TrainWanLoRA'

/** Opens the graph a run was trained with, set to go on with its attempt of this number; 0 = the newest. */
export async function openWorkflow({ workflow, prompt }, name, attempt) {
  const chosen = { restart: false, attempt }
  if (workflow) {
    // a graph with a name opens in a tab of its own, so that nothing unsaved is lost
    await app.loadGraphData(workflow, true, true, name)
    const nodes = (app.graph.nodes ?? app.graph._nodes).filter((node) => node.comfyClass === TRAIN)
    for (const widget of nodes.flatMap((node) => node.widgets)) {
      if (widget.name in chosen) widget.value = chosen[widget.name]
    }
  } else {
    const nodes = Object.values(prompt).filter((node) => node.class_type === TRAIN)
    for (const node of nodes) node.inputs = { ...node.inputs, ...chosen }
    await app.loadApiJson(prompt, name)
  }
}

/** Adds Load Run LoRA for a checkpoint in the middle of the visible graph; false where there is no such node type. */
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

/** Asks in ComfyUI's own dialog; resolves to whether the user agreed. */
export async function confirmDeletion(title, message, name) {
  const { dialog } = app.extensionManager
  if (!dialog?.confirm) return window.confirm(message)
  return dialog.confirm({ title, message, type: 'delete', itemList: [name] })
}

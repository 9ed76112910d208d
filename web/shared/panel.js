// Puts a panel of HTML elements into a node, in the classic canvas and in Nodes 2.0 alike.

import { app } from '../../../scripts/app.js'
import { stylesheet } from './elements.js'

/** {workflow, node}: the ids by which the server knows a node. */
export function nodeKey(node) {
  const graph = node.graph?.rootGraph ?? node.graph ?? app.graph
  return { workflow: graph?.id ?? '', node: String(node.id) }
}

/** Whether a message of the server, {workflow, node}, is about this node; inside subgraphs its id is a path, "5:12". */
export function isAbout(message, node) {
  const key = nodeKey(node)
  return message.workflow === key.workflow && String(message.node).split(':').at(-1) === key.node
}

const MARGIN = 10 // which the classic canvas leaves around an element

/** Puts `element` into the node under its widgets, at least `height` pixels high; it grows with the node, and dragging
 * in it does not move the node. It is saved neither with the workflow nor with the prompt. */
export function addPanel(node, name, element, height) {
  stylesheet('shared/style.css')
  element.classList.add('wantune', 'widget-expands') // the latter makes Nodes 2.0 give it the height that is left
  element.style.minHeight = `${height}px`
  const widget = node.addDOMWidget(name, 'wantune', element, {
    serialize: false,
    getMinHeight: () => height + 2 * MARGIN,
    hideOnZoom: false,
  })
  widget.serialize = false
  element.addEventListener('pointerdown', (event) => {
    if (event.button === 0) event.stopPropagation()
  })
  element.addEventListener('keydown', (event) => {
    // Delete would remove the node; keys with Ctrl, such as Ctrl+Enter, are left to ComfyUI
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation()
  })
  element.addEventListener('wheel', (event) => {
    // the classic canvas behind the element does not get the event; Nodes 2.0 forwards it itself
    if (!canScroll(event.target, element)) app.canvas.processMouseWheel(event)
  }, { passive: false })
  return widget
}

function canScroll(target, element) {
  for (let each = target; each && each !== element.parentElement; each = each.parentElement) {
    if (each.scrollHeight > each.clientHeight && /auto|scroll/.test(getComputedStyle(each).overflowY)) return true
  }
  return false
}

/** Calls `react` when the node has its id and its values: once it stands in the graph that is being opened. */
export function whenPlaced(node, react) {
  // nodeCreated comes before a workflow's values and ids are set; both are set in the same turn as the node is added
  setTimeout(() => {
    if (node.graph) return react()
    const onAdded = node.onAdded
    let isPlaced = false
    node.onAdded = function (...given) {
      const result = onAdded?.apply(this, given)
      if (!isPlaced) setTimeout(react, 0)
      isPlaced = true
      return result
    }
  }, 0)
}

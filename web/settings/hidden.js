// Which widgets few users need, and when they are to be seen all the same: pure, tested by tests/web/settings/hidden.test.mjs.

/** The widgets that the node's description marks as advanced. */
export const advancedOf = (widgets) => (widgets ?? []).filter((widget) => widget.options?.advanced)

/** Whether one of these widgets would train with what nobody sees: it has another value than its default, or a link. */
export const isNeeded = (advanced, defaults, node) => advanced.some((widget) =>
  widget.value !== defaults.get(widget.name) ||
  (node.inputs ?? []).some((input, index) => input.widget?.name === widget.name && node.isInputConnected(index)))

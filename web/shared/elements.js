// Short functions that make HTML and SVG elements, in place of a framework.

const SVG = 'http://www.w3.org/2000/svg'

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.filter((child) => child != null && child !== false))
  return element
}

/** el('button', {class: 'x', onclick: react, disabled: false}, 'text', child) */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children)
}

/** Loads a style sheet, once; `path` begins with its folder: stylesheet('chart/chart.css'). */
export function stylesheet(path) {
  const href = new URL(`../${path}`, import.meta.url).href
  if (![...document.styleSheets].some((sheet) => sheet.href === href) && !document.querySelector(`link[href="${href}"]`)) {
    document.head.append(el('link', { rel: 'stylesheet', href }))
  }
}

// Copying text, also on a page that was loaded over plain http: tested by tests/web/shared/clipboard.test.mjs.

/** Puts a text into the clipboard; resolves to whether it is there. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text) // undefined on plain http, and may be forbidden
    return true
  } catch {
    return copyBySelecting(text)
  }
}

function copyBySelecting(text) {
  const before = document.activeElement
  const field = document.createElement('textarea')
  field.value = text
  field.style.cssText = 'position: fixed; opacity: 0'
  field.addEventListener('copy', (event) => event.stopPropagation()) // else ComfyUI would copy its nodes
  document.body.append(field)
  field.select()
  try {
    return document.execCommand('copy')
  } catch {
    return false
  } finally {
    field.remove()
    before?.focus?.({ preventScroll: true })
  }
}

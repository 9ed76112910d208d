// The contact sheet in Load Dataset: what will be trained on, with the present values of its widgets and files.

import { app } from '../../../scripts/app.js'
import { after } from '../shared/callbacks.js'
import { el, stylesheet } from '../shared/elements.js'
import { ready, t } from '../shared/messages.js'
import { addPanel, whenPlaced } from '../shared/panel.js'
import { get, media, post } from '../shared/server.js'
import { pickFolder } from './folder_picker.js'
import { SheetGrid } from './grid.js'
import { configOf, FILTERS, filtered, itemsOf, linkedWidgets, totalsOf } from './items.js'
import { thumbnailQueue } from './thumbnail_queue.js'
import { sheetTile } from './tile.js'

const NODE = 'WanTune_LoadDataset'
const SETTINGS = 'WanTune_DatasetSettings'
const EDITING = 'wantune_edit_captions'

const HEIGHT = 360
const TILE = { width: 100, height: 186, gap: 8 }
const EDITED_HEIGHT = 226
const MAX_NAMED = 2 // sizes that the line of totals names; of more it gives only the number

const TICK = 400 // milliseconds between two checks of the widgets
const DEBOUNCE = 300 // milliseconds without a change before a request
const POLL = 3000 // least milliseconds between two requests about the folder
const PATIENCE = 50 // that time is at least so many times a request's duration, so training loses 2 % at most

/** The active Dataset Settings node linked to the settings socket, also through reroutes; null where there is none. */
function settingsOf(node) {
  const slot = node.inputs?.findIndex((input) => input.name === 'settings') ?? -1
  let origin = slot < 0 ? null : node.getInputNode?.(slot)
  while (origin?.type === 'Reroute') origin = origin.getInputNode(0)
  return origin?.comfyClass === SETTINGS && origin.mode === 0 ? origin : null
}

function isSeen(element) {
  if (document.visibilityState !== 'visible' || !element.isConnected) return false
  const { width, height, top, left, bottom, right } = element.getBoundingClientRect()
  return width > 0 && height > 0 && bottom > 0 && right > 0 && top < innerHeight && left < innerWidth
}

class ContactSheet {
  constructor(node) {
    this.node = node
    this.answer = null
    this.asked = '' // the widgets' values in the last request
    this.state = '' // the server's hash of the dataset that is shown
    this.awaited = '' // the widgets' values in the request that is about to be sent
    this.asking = null
    this.nextPoll = 0
    this.kept = null // an answer to show once no caption is being edited
    this.queue = thumbnailQueue((query, signal) => media('thumbnail', query, signal))
    this.build()
    this.timer = setInterval(() => this.tick(), TICK)
  }

  build() {
    this.status = el('div', { class: 'wt-status', role: 'status' })
    this.notes = el('details', { class: 'wt-notes', hidden: true })
    this.search = el('input', { type: 'search', class: 'wt-search', placeholder: t('sheet.filter'),
      'aria-label': t('sheet.filter'), oninput: () => this.show() })
    this.kind = el('select', { 'aria-label': t('sheet.show'), onchange: () => this.show() },
      ...FILTERS.map((kind) => el('option', { value: kind }, t(`sheet.show_${kind}`))))
    this.editing = el('input', { type: 'checkbox', role: 'switch', onchange: () => {
      this.node.properties[EDITING] = this.editing.checked
      this.grid.renew()
    } })
    this.grid = new SheetGrid((item) => this.makeTile(item),
      () => ({ ...TILE, height: this.isEditing() ? EDITED_HEIGHT : TILE.height }), t('sheet.label'))
    this.element = el('div', { class: 'wt-sheet' },
      el('div', { class: 'wt-row' },
        el('button', { type: 'button', onclick: () => this.browse() }, t('sheet.browse')), this.search, this.kind,
        el('label', { class: 'wt-switch', title: t('sheet.edit_tip') }, this.editing, t('sheet.edit'))),
      this.status, this.notes, this.grid.element)
    for (const kind of ['keydown', 'pointerdown', 'dblclick']) {
      this.element.addEventListener(kind, (event) => event.stopPropagation()) // else the canvas would react, too
    }
  }

  isEditing() {
    return Boolean(this.node.properties?.[EDITING])
  }

  makeTile(item) {
    return sheetTile(item, {
      want: (id, signal) => this.queue.want({ id }, signal),
      trigger: this.answer.trigger_word ?? '',
      isEditing: this.isEditing(),
      save: async (text, before) => {
        const folder = this.answer.folders[0]
        return (await post('caption', { folder, file: item.file.file, text, before })).text
      },
      edited: () => this.ask(),
      missing: () => { this.state = '' } // the server restarted: request the dataset again
    })
  }

  config() {
    return JSON.stringify(configOf(this.node, settingsOf(this.node)))
  }

  tick() {
    this.editing.checked = this.isEditing()
    if (this.kept && !this.grid.isBusy()) this.take(this.kept)
    if (!isSeen(this.element)) return
    if (this.config() !== this.asked) this.soon()
    else if (!this.asking && performance.now() > this.nextPoll) this.ask()
  }

  soon() {
    if (this.config() === this.awaited) return
    this.awaited = this.config()
    clearTimeout(this.waiting)
    this.waiting = setTimeout(() => this.ask(), DEBOUNCE)
  }

  async ask() {
    clearTimeout(this.waiting)
    this.asking?.abort()
    const mine = (this.asking = new AbortController())
    this.asked = this.awaited = this.config()
    if (!configOf(this.node).folder?.trim()) {
      this.asking = null
      this.take({ hint: t('sheet.no_folder'), files: [] })
      return
    }
    const began = performance.now()
    try {
      const query = { config: this.asked, known: this.state, gently: 1 }
      let answer = await get('dataset', query, mine.signal)
      while (answer.progress) {
        this.say(t('sheet.reading', answer.progress))
        answer = await get('dataset', query, mine.signal)
      }
      if (this.asking === mine && !answer.same) this.take(answer)
    } catch (error) {
      if (error.name !== 'AbortError' && this.asking === mine) this.take({ error: error.message, files: [] })
    }
    if (this.asking !== mine) return
    this.asking = null
    this.nextPoll = performance.now() + Math.max(POLL, PATIENCE * (performance.now() - began))
  }

  take(answer) {
    this.kept = null
    if (this.grid.isBusy()) {
      this.kept = answer // shown by tick() once no caption is being edited
      return
    }
    this.state = answer.state ?? ''
    if (answer.folders?.[0] !== this.answer?.folders?.[0]) this.grid.element.scrollTop = 0
    const text = JSON.stringify(answer)
    if (text === this.shown) return
    const isMarkedAnew = answer.trigger_word !== this.answer?.trigger_word
    this.shown = text
    this.answer = answer
    this.show()
    if (isMarkedAnew) this.grid.renew()
  }

  say(text, isError = false) {
    this.status.textContent = text
    this.status.classList.toggle('wt-error', isError)
  }

  show() {
    const { answer } = this
    if (!answer) return
    const items = itemsOf(answer)
    const chosen = filtered(items, this.search.value, this.kind.value)
    const totals = totalsOf(answer)
    const linked = linkedWidgets(this.node, settingsOf(this.node))
    const buckets = totals?.buckets.length > MAX_NAMED ? t('sheet.buckets', { count: totals.buckets.length })
      : totals?.buckets.join(', ')
    this.status.title = totals?.buckets.join('\n') ?? ''
    this.say(answer.error ?? answer.hint ?? [
      t('sheet.totals', { ...totals, buckets }),
      totals.held_out && t('sheet.totals_held_out', { count: totals.held_out }),
      chosen.length < items.length && t('sheet.totals_shown', { count: chosen.length, all: items.length })
    ].filter(Boolean).join(' \u00b7 '), Boolean(answer.error))
    const notes = [linked.length && t('sheet.linked', { names: linked.join(', ') }), ...(answer.notes ?? [])]
      .filter(Boolean)
    this.notes.hidden = !notes.length
    this.notes.replaceChildren(el('summary', {}, t('sheet.notes', { count: notes.length })),
      el('ul', {}, ...notes.map((note) => el('li', {}, note))))
    this.grid.show(chosen)
  }

  async browse() {
    const widget = this.node.widgets.find(({ name }) => name === 'folder')
    const start = this.answer?.error || !widget.value.trim() ? '' : widget.value
    const chosen = await pickFolder(start)
    if (chosen === null) return
    widget.value = chosen
    widget.callback?.(chosen, app.canvas, this.node)
    this.node.setDirtyCanvas?.(true, true)
    this.soon()
  }

  close() {
    clearInterval(this.timer)
    clearTimeout(this.waiting)
    this.asking?.abort()
    this.asking = null
    this.grid.close()
  }
}

app.registerExtension({
  name: 'WanTune.contact_sheet',
  async nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    stylesheet('sheet/sheet.css')
    const place = el('div', { class: 'wt-place' })
    addPanel(node, 'wantune_sheet', place, HEIGHT)
    let sheet
    after(node, 'onRemoved', () => sheet?.close())
    after(node, 'onConnectionsChange', () => sheet?.soon())
    for (const widget of node.widgets) after(widget, 'callback', () => sheet?.soon())
    await ready
    sheet = new ContactSheet(node)
    place.append(sheet.element)
    whenPlaced(node, () => sheet.tick())
  }
})

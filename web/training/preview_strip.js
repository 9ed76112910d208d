// The newest preview of a run as strips of frames; clicked, a dialog plays it and steps through all of the run.

import { el, stylesheet } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { media, video } from '../shared/server.js'
import { inOrder, stripOf } from './run_state.js'

const titleOf = ({ name, step }) => (name === 'base' ? t('chart.preview_base') : t('chart.preview_step', { step }))

const pathOf = (run) => `runs/${encodeURIComponent(run)}/file`

/** {element, show(run, previews), destroy()}; `previews` as GET /wantune/runs/{run} lists them. */
export function createPreviewStrip() {
  stylesheet('training/training.css')
  const element = el('div', { class: 'wt-previews' })
  let run = null
  let previews = []
  let shown = ''
  let addresses = []
  let loading = null
  let dialog = null

  function forget() {
    loading?.abort()
    addresses.forEach(URL.revokeObjectURL)
    addresses = []
  }

  async function show(nextRun, nextPreviews) {
    run = nextRun
    previews = inOrder(nextPreviews)
    dialog?.update(run, previews)
    const newest = previews.at(-1)
    const key = newest ? `${run}/${newest.name}/${newest.files.join()}` : ''
    if (key === shown) return
    shown = key
    loading?.abort()
    if (!newest) {
      forget()
      element.replaceChildren()
      return
    }
    loading = new AbortController()
    const { signal } = loading
    const load = (file) => media(pathOf(run), { name: stripOf(file) }, signal).catch(() => null)
    const fresh = await Promise.all(newest.files.map(load))
    if (signal.aborted || shown !== key) {
      fresh.filter(Boolean).forEach(URL.revokeObjectURL)
      return
    }
    addresses.forEach(URL.revokeObjectURL)
    addresses = fresh.filter(Boolean)
    element.replaceChildren(el('div', { class: 'wt-faint' }, titleOf(newest)), ...fresh.map((address, index) => {
      if (!address) return null
      const name = t('chart.enlarge', { preview: titleOf(newest), prompt: index + 1 })
      return el('button', { type: 'button', class: 'wt-strip', title: name, 'aria-label': name, onclick: open },
        el('img', { src: address, alt: '', draggable: 'false' }))
    }).filter(Boolean))
  }

  function open() {
    dialog = createDialog(() => { dialog = null })
    dialog.update(run, previews)
  }

  return {
    element,
    show,
    destroy() {
      forget()
      dialog?.close()
    },
  }
}

function createDialog(onclosed) {
  const videos = el('div', { class: 'wt-videos' })
  const title = el('strong', { 'aria-live': 'polite' })
  const slider = el('input', { type: 'range', min: 0, step: 1, 'aria-label': t('chart.preview_slider'),
    oninput: () => select(Number(slider.value)) })
  const button = (key, act, sign) =>
    el('button', { type: 'button', title: t(key), 'aria-label': t(key), onclick: act }, sign)
  const element = el('dialog', { class: 'wantune wt-dialog', 'aria-label': t('chart.previews') },
    el('div', { class: 'wt-row' }, title, el('span', { class: 'wt-faint wt-grow' }, t('chart.preview_keys')),
      button('chart.close', () => element.close(), '\u2715')),
    videos,
    el('div', { class: 'wt-row wt-stepper' }, button('chart.preview_previous', () => move(-1), '\u25c0'), slider,
      button('chart.preview_next', () => move(1), '\u25b6')))
  let run = null
  let previews = []
  let index = -1
  let loading = null
  const known = new Map()

  function update(nextRun, nextPreviews) {
    if (run !== nextRun) forget()
    const name = previews[index]?.name
    const isLast = index === previews.length - 1
    run = nextRun
    previews = nextPreviews
    slider.max = Math.max(0, previews.length - 1)
    // the newest is followed, an older one that is looked at stays
    const same = previews.findIndex((preview) => preview.name === name)
    select(isLast || same < 0 ? previews.length - 1 : same)
  }

  const move = (by) => select(Math.min(previews.length - 1, Math.max(0, index + by)))

  function addressesOf(preview, signal) {
    return Promise.all(preview.files.map(async (file) => {
      if (!known.has(file)) known.set(file, await video(pathOf(run), { name: file }, signal))
      return known.get(file)
    }))
  }

  async function select(next) {
    const preview = previews[next]
    if (!preview) return element.close()
    const isSame = next === index && videos.dataset.name === preview.name
    index = next
    slider.value = next
    slider.setAttribute('aria-valuetext', titleOf(preview))
    title.textContent = titleOf(preview)
    if (isSame) return
    videos.dataset.name = preview.name
    loading?.abort()
    loading = new AbortController()
    const { signal } = loading
    try {
      const addresses = await addressesOf(preview, signal)
      if (!signal.aborted) play(addresses)
    } catch (error) {
      if (!signal.aborted) videos.replaceChildren(el('p', { class: 'wt-error' }, error.message))
    }
  }

  function play(addresses) {
    const isStill = matchMedia('(prefers-reduced-motion: reduce)').matches
    const present = [...videos.querySelectorAll('video')]
    // the elements stay, so that stepping does not flicker
    if (present.length === addresses.length) present.forEach((player, number) => { player.src = addresses[number] })
    else {
      videos.replaceChildren(...addresses.map((address, number) => {
        const player = el('video', { src: address, loop: true, controls: true, playsinline: true, autoplay: !isStill,
          'aria-label': t('chart.prompt', { prompt: number + 1 }) })
        player.muted = true
        const caption = addresses.length > 1 && el('figcaption', {}, t('chart.prompt', { prompt: number + 1 }))
        return el('figure', {}, player, caption)
      }))
    }
  }

  function forget() {
    loading?.abort()
    known.forEach(URL.revokeObjectURL)
    known.clear()
    videos.dataset.name = ''
  }

  element.addEventListener('keydown', (event) => {
    // ComfyUI's own keys must not work on the graph behind the dialog
    event.stopPropagation()
    const keys = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), Home: () => select(0),
      End: () => select(previews.length - 1) }
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    keys[event.key]()
  }, { capture: true })
  element.addEventListener('click', (event) => {
    if (event.target === element) element.close()
  })
  element.addEventListener('close', () => {
    forget()
    element.remove()
    onclosed()
  })
  document.body.append(element)
  element.showModal()
  slider.focus()
  return { update, close: () => element.close() }
}
